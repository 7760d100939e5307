"""Linear, window and mediator attention on their own. So far their definitions, in `reference`."""
