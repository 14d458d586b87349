"""Reading answers: counting their tokens, and checking that they are complete and correct.

body        what every format has in common: Body, what is expected of it, the server's counts
streams     answers that are streamed
objects     answers that are one JSON object
reading     JSON values and error messages

A Body raises StreamFailure for anything but the expected answer.
"""
