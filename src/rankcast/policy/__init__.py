"""AirLLM: PPO proposes, a conditional DDIM refines."""
