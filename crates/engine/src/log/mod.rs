//! Bytes of memory: knows records, not their meaning.
