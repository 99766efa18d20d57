"""The sections of a report, a function each: `RunFolder` to blocks, or `LeftOut`."""
