"""What is learned from: text, objectives, and the learner behind the MDP."""
