//! Networks and ports as an operator sees them: model, protocol, server, client, command line.
