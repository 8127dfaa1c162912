"""Feed everything that is read from others with what nobody would send: behind scripts/fuzz.

============ ====================================================================================
`main`       the command
`targets`    the decoders: what each takes, what it may refuse with, samples of what is right
`files`      of those, the ones that read files
`mutate`     how something that is right becomes something that is not
`decoders`   the loop over the targets, by atheris where it is installed, else by `mutate`
`guided`     one target under atheris, in a process of its own
`traffic`    what hostile senders say, by each way into a viewer
`live`       a viewer under hostile senders, with a good one beside them
============ ====================================================================================
"""

from __future__ import annotations
