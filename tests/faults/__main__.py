"""`python -m tests.faults`: see campaign.py."""

import sys

from tests.faults.campaign import main

sys.exit(main())
