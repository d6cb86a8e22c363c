"""Where it runs: settings, servers, pools, automations, and whether this machine is fit."""
