"""The commands of the command line, a module each, as `cli.COMMANDS` lists them: `add` declares the flags, `run` works.
Beside them lies what several share, or what one of them shows: flags, tables, plots, pages.
"""
