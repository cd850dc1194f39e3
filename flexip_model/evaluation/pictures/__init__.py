"""The pictures that a method made, in the plain form or in DreamBench++'s folders, one record for both."""
