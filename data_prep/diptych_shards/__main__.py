import sys

from diptych_shards.cli import main

if __name__ == "__main__":
    sys.exit(main())
