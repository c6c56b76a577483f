//! node-plugin.
