"""The learner behind the MDP: texts, objectives, and the model that trains under a plan."""
