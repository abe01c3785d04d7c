"""The sweeper off: nothing repeats what a crash or a lost doorbell left. Loaded by every process of a control."""

import sys

if "-Q" in sys.argv and sys.argv[sys.argv.index("-Q") + 1] == "collector":
    from tasks import sweeper

    sweeper.sweep_once = lambda *_: None
