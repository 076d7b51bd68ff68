"""Transfer syntaxes by UID (PS3.6 annex A): which ones are native, and which lose something."""

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".1.99", ".2"))
NATIVE = {IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN}
LOSSY = {f"1.2.840.10008.1.2.4.{tail}" for tail in ("50", "51", "81", "91", "93", "203")}
STANDARD = "1.2.840.10008.1.2"  # what begins like this is explicit VR little endian, but for IMPLICIT and BIG_ENDIAN
