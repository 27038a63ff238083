"""Taking the evidence: which questions to ask, each asked once and recorded when it is answered."""
