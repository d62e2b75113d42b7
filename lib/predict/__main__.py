"""``python -m lib.predict``: see :mod:`lib.predict.predict`."""

from lib.predict.predict import main

raise SystemExit(main())
