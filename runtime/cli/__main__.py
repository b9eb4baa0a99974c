import sys

from torchless.cli import main

sys.exit(main())
