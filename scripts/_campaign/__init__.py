"""Kill, stop and crowd real processes, and look at what is left: behind scripts/faults and soak.

============== ==================================================================================
`faults`       the command: plans the trials, runs them side by side, prints the table
`plan`         what is done to whom at which moment: a trial, and how they are drawn
`cell`         a process in which trials run one after another, with folders of its own
`trial`        one trial: victims, survivors, what is left
`others`       faults without a kill: stopped, slow, full, and addresses that somebody else has
`original`     the same trials on the scheme of one named segment per image, to see the check fail
`leftovers`    what there is in /proc, in /dev/shm and in the cell's folders
`worker`       a sender, as a program; `viewer`: a viewer, as a program; `points`: where they stop
`soak`         the command: workers for half an hour; `soak_worker`: one of them
============== ==================================================================================
"""

from __future__ import annotations
