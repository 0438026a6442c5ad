"""Reading and writing files so that a crash, a pipe or a link in the wrong place does no harm."""
