"""``python -m lib.predict``: see :mod:`lib.predict.predict`."""

import sys

from lib.predict.predict import main

sys.exit(main())
