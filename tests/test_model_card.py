"""model/card.py: what a card's figures were counted on."""

import torch

from model.card import card
from model.config import resolve
from model.vqvae import VQVAE


def test_the_card_says_what_its_use_of_the_codebook_was_counted_on() -> None:
    torch.manual_seed(0)
    model = VQVAE(resolve("tiny", intensity="hu"))
    text = card("0" * 64, model, model.config, {"codebook_use": 0.6533, "patients_held_out": 3})
    assert "| codebook use: share of codes that occur in the slices measured | 0.6533 |" in text
    assert "| patients held out | 3 |" in text  # whose key says enough
    assert "`metrics.jsonl` counts the training patches" in text.replace("\n", " ")
