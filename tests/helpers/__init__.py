"""What tests of several rooms share; benchmarks use some of it, too."""
