"""Entry point for `python -m diptych VERB …` and `torchrun … -m diptych VERB …`."""

from diptych.cli import main

if __name__ == "__main__":
    main()
