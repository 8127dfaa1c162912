"""Feed everything that is read from others with what nobody would send: behind scripts/fuzz.

============ ====================================================================================
`main`       the command
`targets`    the decoders: what each takes, what it may refuse with, samples of what is right
`mutate`     how something that is right becomes something that is not
`decoders`   the loop over the targets, by atheris where it is installed, else by `mutate`
`traffic`    what hostile senders say, by each way into a viewer
`live`       a viewer under hostile senders, with a good one beside them
============ ====================================================================================
"""

from __future__ import annotations
