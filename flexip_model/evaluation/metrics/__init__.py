"""The paper's metrics (section 4.2), each defined in one table and computed one picture at a time."""
