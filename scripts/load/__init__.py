"""What the bench, the load test and the soak test share.

request, words    what to ask for; words for random prompts
bodies            reading answers: one class for each format of an answer
dialects          the table of APIs: path, media type, fields of a request, class of its answer
target            a server: its URL, dialect, key and the fields of every request
record            what one request did: arrival time of each token, outcome, failure
exchange          one request on its connection
client            the HTTP client: connections, timeouts
server            starts a server as a subprocess
errors            errors, and the kinds of failures of a stream
arguments         types of command-line arguments
exit_status       exit statuses of the commands
interrupt         SIGINT and SIGTERM during a measurement
"""
