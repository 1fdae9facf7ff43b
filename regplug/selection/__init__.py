"""Which parameters: ``where=``, and what it covers of one optimizer's."""
