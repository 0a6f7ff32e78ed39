"""The servers: a transport on one side, a codec and a table on the other, replies in request order."""
