"""``python -m lib.exchange``: see :mod:`lib.predict.exchange`."""

import sys

from lib.predict.exchange import main

if __name__ == "__main__":
    sys.exit(main())
