"""The mechanism under every data set; a user chooses from the files one folder up."""
