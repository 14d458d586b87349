"""The bench: python -m scripts.bench

command             the command line and the table of measurements
front, latency      the front process, with the echo engine
decode              ctransformers through the server; one worker or two
step, engine        one worker, and llama.cpp alone
comparison          rates, stalls and cancellations, compared with llama-server
cache               prompts that are processed again
loads               requests that are sent together
targets, servers    the servers, and random requests for them
job, figures        what a measurement is given, and its result
models              models with random weights
stamps, direct      a server that records its tokens; ctransformers without a server
build_llama_server  a command that builds llama-server
"""
