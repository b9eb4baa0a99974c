"""Where the library says what is no error: the logger "torchless", silent until the program listens to it."""

from __future__ import annotations

import logging

log = logging.getLogger("torchless")
log.addHandler(logging.NullHandler())  # else Python prints warnings that nobody has asked for
