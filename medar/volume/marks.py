"""What volumes that are no scans say of themselves, in the description of the file.

NIfTI has it in `descrip`, NRRD in `content`, MetaImage in `Comment`.
"""

from medar.version import __version__

SYNTHETIC = f"synthetic, medar {__version__}"
"""Images and label maps that a generator made."""
PHANTOM = f"synthetic phantom, medar {__version__}"
"""Images and label maps of computed torsos."""
RECONSTRUCTED = f"reconstructed, medar {__version__}"
"""Volumes that a tokenizer decoded, of a scan or of a synthetic volume."""
