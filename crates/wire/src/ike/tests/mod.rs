mod hostile;
mod round_trip;
mod samples;
mod selectors;
