"""Function calls in what a model writes, found while it is being written.

    text ─▶ parser.ToolCallParser.feed ─▶ events: Text, CallStart, CallArguments…, CallEnd
                  │  ▲
                  ▼  │ Name, Arguments…, Complete or NoCall
            one syntax.CallSyntax for each call:
            json_call, named_call or tagged_call

The parser finds where a call may begin (an opener of the model's ToolFormat, or a bracket at the
beginning of the answer) and where lists of calls continue; a CallSyntax reads one call.
"""
