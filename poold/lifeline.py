"""The messages between the master and its exporter: single bytes on a stream.

Each of the two asks whether the other's loop turns.

Exporter → master   QUESTION: the master answers once it has published counters that are newer than
                    the question
Master → exporter   QUESTION: the exporter answers at once. The master asks when a scraper has come,
                    because an idle master has no timer by which to ask
The end of the stream, from the master: leave.

Neither process waits for an answer in a call. Neither has more than one open question.
"""

QUESTION = b"?"
ANSWER = b"!"
# The most bytes of one read: more than an exporter that follows these rules sends at a time.
WORDS_MAX = 64
