"""The sections of a configuration as typed values, and the grammars in which they are written."""
