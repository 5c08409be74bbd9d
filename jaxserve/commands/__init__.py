"""Commands of the command line, a module each: `add` declares the flags, `run` does the work; `cli.COMMANDS` lists them.
The other modules are what several commands share, or what one of them shows: flags, tables, plots, pages.
"""
