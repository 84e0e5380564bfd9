"""Search strategies that pause and promote trials, and the models behind them."""
