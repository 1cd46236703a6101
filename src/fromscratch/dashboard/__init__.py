"""The dashboard: a local web application that shows runs and studies. It reads run directories and writes nothing."""
