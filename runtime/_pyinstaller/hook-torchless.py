"""What goes into an application that imports torchless. PyInstaller runs this file and reads its names."""

from torchless import _NAMES

# The public names are imported when they are first asked for, by a name that no analysis follows.
hiddenimports = sorted({f"torchless.{module}" for module in _NAMES.values()})
# Only load(download=True) imports it; with what it brings along it would be a tenth of a small application.
excludedimports = ["huggingface_hub"]
