"""The files of the project that git tracks or would track, for the checks beside this file."""

import pathlib
import subprocess


def source_files(root, suffixes):
    """Paths relative to `root`, sorted, of files with one of the suffixes (None: any); a folder without git is walked."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        paths = [pathlib.PurePosixPath(name) for name in listing.stdout.split("\0") if name]
    else:
        paths = [pathlib.PurePosixPath(p.relative_to(root).as_posix()) for p in root.rglob("*")]
        paths = [p for p in paths if p.parts[0] not in ("build", ".git")]
    return sorted(p for p in set(paths) if (suffixes is None or p.suffix in suffixes) and (root / p).is_file())
