"""What tests run on the null card: plain functions that take and give JSON, called by `tests.null_card.host`."""
