"""Small programs to copy: tf_adamw with other libraries."""
