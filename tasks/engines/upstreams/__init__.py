"""The parts of the engine `upstream`: who is asked, how much at once, and what came of it."""
