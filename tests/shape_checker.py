"""What the import hook of conftest.py puts on every function of minirl."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float: clip_eps=1
