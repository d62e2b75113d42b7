"""``python -m lib.exchange``: see :mod:`lib.predict.exchange`."""

from lib.predict.exchange import main

if __name__ == "__main__":
    raise SystemExit(main())
