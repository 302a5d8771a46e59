"""Start the page, or one of the headless verbs: see `python app.py --help`."""

import sys

from qlora_gui.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
