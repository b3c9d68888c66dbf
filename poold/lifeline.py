"""The wire between the master and its exporter, a stream of single bytes: each asks whether the other's loop turns.

Exporter → master   QUESTION: answered by the master once it has published counters that are of a later moment than the question
Master → exporter   QUESTION: answered at once; asked when a scraper has come, because a master that is idle has no tick to ask by
The end of the stream, from the master: leave.

Neither waits for its answer in a call, and neither has more than one question open at a time.
"""

QUESTION = b"?"
ANSWER = b"!"
# Words in one read: more than an exporter that keeps to the above has ever said.
WORDS_MAX = 64
