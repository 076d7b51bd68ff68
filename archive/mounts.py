"""On what kind of file system a path lies."""

from __future__ import annotations

from pathlib import Path

NETWORK = {"nfs", "nfs4", "cifs", "smbfs", "smb2", "smb3", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs"}
NETWORK |= {"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"}


def on_network(path: Path, mounts: list[tuple[str, str]] | None = None) -> bool:
    """Whether a path lies on a file system over the network; mounts: (mount point, type), asked of the system."""
    if mounts is None:
        import psutil

        mounts = [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    real = path.resolve()
    best, kind = -1, ""
    for point, fstype in mounts:
        if real.is_relative_to(point) and len(point) > best:
            best, kind = len(point), fstype
    return kind.lower() in NETWORK
