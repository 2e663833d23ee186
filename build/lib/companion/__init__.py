"""Research papers as executable notebooks whose every claim is checked."""

import warnings

__version__ = "0.1.0"

# torch imports tqdm.auto, which complains in every notebook without ipywidgets
warnings.filterwarnings("ignore", message="IProgress not found")
